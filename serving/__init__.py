"""Serving: indexes, the key-value store, the planner, and the jobs that build, gate and deploy them."""
