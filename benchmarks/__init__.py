"""Speed and memory beside the peers, measured in one run; results/*.json feed docs/benchmarks.md."""
