#!/usr/bin/env bash
# Run <<name>>: <<processes>> on this machine, connected over loopback.
<<made_by>>
#
# `bash FILE` starts it, from the folder that relative paths of the config start from; SIGTERM saves and ends it with 75.
# The same file again resumes the run.
set -u

<<environment>>
# Lines get the number of their process. When one ends, the others have <<after_failure>> s to end by themselves, <<after_save>> s after a save.
<<restart>>
<<venv>>
exec maverick launch local <<arguments>>
