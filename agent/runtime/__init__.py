"""The namespace and cgroup runtime."""
