"""What `lockstep diagnose` says about a log: measured by the core, told by table, words and pictures.

In the order of the data: `diagnosis` gathers the statistics, `rows` and `verdict` put them into a table
and into words, `terminal`, `machine` and `page` show them. Needs ``pip install 'lockstep[report]'``.
"""
