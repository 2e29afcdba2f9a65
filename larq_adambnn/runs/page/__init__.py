"""report.html: a page about a run or a study in one file, which opens from disk.

`facts` gathers what there is, `charts` makes figures of it, `render` puts both into a template.
"""
