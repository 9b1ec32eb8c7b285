"""``python -m golem_tasks.cli``, where the ``golem`` script isn't on the path."""

from golem_tasks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
