"""The paper's experiment in miniature: a policy trained in pairs of precisions, by each algorithm, over seeds.

`experiment` says what is run, `runs` carries it out, `probe` measures a policy, `results` is what was found.
"""
