"""``python -m recsys_edu.experiments NAME``: runs and records an experiment."""

from recsys_edu.experiments.runner import main

if __name__ == "__main__":
    main()
