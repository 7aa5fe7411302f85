"""The server over HTTP: OpenAI's images API, requests and their order, metrics, who may ask and how much."""
