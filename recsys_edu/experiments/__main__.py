"""``python -m recsys_edu.experiments NAME``: runs and records an experiment."""

from recsys_edu.experiments.record import main

if __name__ == "__main__":
    main()
