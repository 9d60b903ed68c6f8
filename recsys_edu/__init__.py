"""The code of *Three Clocks: ranking long user histories, fast*.

A ranking request is one user, a history of N events and M candidates. Every design in
this package answers one question: which clock pays for the work? The item clock runs
once per item when the catalogue changes, the request clock once per request, the
candidate clock once per candidate.

Modules are grouped by concept: ``data`` reads impression logs, ``encoders`` fuse
candidates with histories, ``dlrm`` ranks, ``training`` and ``metrics`` fit and judge,
``cost`` counts FLOPs and bytes per clock, ``bench`` times. Importing ``recsys_edu``
itself imports none of them, and nothing else.
"""

__version__ = "0.1.0"
