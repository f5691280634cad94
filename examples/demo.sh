#!/bin/sh
# Make the demo clip in FOLDER, track it, and compare the result with the motion it was made with.
#   sh examples/demo.sh FOLDER
set -eu
here=$(dirname "$0")
python "$here/demo_clip.py" "$1"
nphm-track "$1/clip.mp4" -o "$1/run"
python "$here/demo_clip.py" "$1" --compare "$1/run"
