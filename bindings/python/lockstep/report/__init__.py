"""What the commands say: measured by the core, told by table, words and pictures.

Of `lockstep diagnose`, in the order of the data: `diagnosis` gathers the statistics, `rows`, `verdict` and `causes` put them
into a table and into words, `terminal`, `machine` and `page` show them. What `locate`, `offline`, `sanity` and `scaler` say has
files of those names, with the same page and pictures. Needs ``pip install 'lockstep[report]'``.
"""
