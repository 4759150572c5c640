"""The numbered behaviours that users of the pod model rely on, on a real cluster. `python -m tests.behaviours`."""
