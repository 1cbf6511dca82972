#!/usr/bin/env bash
# Run pretrain-tiny: 2 processes on this machine, connected over loopback.
# Made by: maverick launch local pretrain_tiny --processes 2 --restart
#
# `bash FILE` starts it, from the folder that relative paths of the config start from; SIGTERM saves and ends it with 75.
# The same file again resumes the run.
set -u

# Lines get the number of their process. When one ends, the others have 30 s to end by themselves, 300 s after a save.
# After exit codes 75, 76 and 77 the job is started again, at most 50 times, after a delay that doubles while
# there is no progress; 3 starts in a row without progress end it. No other code leads to a restart.
exec maverick launch local pretrain_tiny --processes 2 --restart --submit
