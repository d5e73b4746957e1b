"""A campaign against mrlib: damaged files, kills, odd environments, hostile ids, links and archives; not run by pytest.

    python -m tests.campaign --seed 7 --files 1600 --kills 60       # everything, about 40 minutes on two cores
    python -m tests.campaign --files 400 --only "annotations"       # the kinds of files whose names begin so
    python -m tests.campaign --environments --hostile

It prints how many cases were answered in which way, then each case that was not answered well, with what repeats it.
"""
