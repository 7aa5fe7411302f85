"""The first day with a GPU, in parts that are run one by one: `python -m benchmarks.gpu_day`."""
