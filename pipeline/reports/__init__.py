"""Catalog and runs -> what a person reads and looks at.

In: tables, records, models. Out: progress and tables on the terminal, contact sheets, plots, drawn samples.

    terminal.py       live progress, tables on the terminal
    events.py         what a command says as JSON lines
    progress.py       how far a phase is, as numbers
    watch.py          the run at work, from anywhere that reads the root
    status.py         what the catalog holds: status, show, closing accounts
    versions.py       the log of runs and the difference of two versions, as tables
    rules_report.py   what each rule rejects, and what moving its thresholds would do
    rules_plot.py     histograms of the scores
    sheet.py          contact sheets and grids
    verdict_sheet.py  the media of one verdict with their scores
    caption_sheet.py  media with what each captioner says of them
    media_file.py     a picture's or video's file to the frames that tokenizing sees
    video_file.py     frames to an mp4
    sizes.py          sizes and lengths as a person says them
    trained.py        the newest model asked: pictures, clips, captions, answers, texts
    samples.py        what a model drew, as PNG, MP4 or a folder
"""
