"""Every long run and every benchmark, by one protocol.

An experiment is a module of this folder with a generator::

    KEY = ("model", "seed")   # the columns that tell its rows apart

    def runs(names=(), done=()) -> Iterator[dict]:
        ...                   # one row a run, as soon as it is done

``names`` are models, where ``KEY`` has that column, or else values of its first one:
these alone are run, all if there is none. (A module that takes others says with
``asked(row, names)`` which rows are meant.) ``done`` maps the keys of rows that are
there already to these rows: they are not run again.
Rows that are measured side by side, so that their ratios share a machine, cannot be
taken up in the middle: such a module has no ``KEY``, and its ``runs`` no ``done``.
Its docstring says "Takes ..." and how long.

``python -m recsys_edu.experiments`` lists them, and with a name behind it runs one: see
:mod:`recsys_edu.experiments.runner`. :func:`recsys_edu.experiments.record.load` reads
what came of it.
"""
