"""The command line, and what its commands do beyond the phases.

In: arguments. Out: the calls of the rooms above, errors as one line.

    cli.py          which commands there are
    ending.py       how a command ends: one line, and an exit code
    interrupted.py  what is said when a signal ends it
    examples.py     what `--help` of each command ends with
    completion.py   what shells offer for names of a config
    options.py      what several commands take
    init.py         init, doctor, schema
    phases.py       run, curate, caption, tokenize, train, redecide
    jobs.py         submit, jobs list, status, logs, stop
    look.py         status, show, log, diff, rules, sheet, report, explore
    sample.py       sample: pictures, clips, captions, answers, texts from the trained model
    evaluate.py     trained models measured
    export.py       export images, clips, webdataset, parquet, captions, model; convert-head
    tokenizer.py    tokenizer train, eval, convert
    captioner.py    captioner try, captioner train
    prefer.py       prefer draw, page, score
    takedown.py     forget, vacuum, verify
    reference.py    config and command line as docs/reference.md
    trouble.py      what fails, and the reasons of rejected rows, as docs/errors.md
    forget.py       media taken out of everything, for good
    vacuum.py       files that no version needs
"""
