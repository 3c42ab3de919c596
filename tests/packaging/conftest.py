"""Nothing here is for pytest: these are scripts that ``make test-wheel`` and ``make test-lowest`` run."""

collect_ignore_glob = ["*.py"]
