"""Manifests of the image server for Kubernetes and KServe, and what they say of its replicas."""
