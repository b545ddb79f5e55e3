"""What it would cost to mix model versions, measured offline: the one place in the project where they are mixed.

    releases.py    which releases, and their parts
    mixing.py      queries of one version against candidates of another, as raw matrices; only figures come out
    job.py         every pair, with popularity and chance beside them
    heat_map.py    the result as a picture
    table.py       the result as text

No index, key-value store or planner is touched, nothing that serving imports is here, and nothing that is written here
is an artifact: it has no tag, so no reader of the project would take it for one.
"""
