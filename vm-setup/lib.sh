# shellcheck shell=bash
# What the scripts of this folder share: how they speak, how they stop, and how they wait.
# Sourced, never run. It keeps to bash 3.2, the one that macOS ships.

# shellcheck disable=SC2016  # backticks in the texts are quotation, not substitution

say()  { printf '%s\n' "$*"; }
step() { printf '==> %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
hint() { printf '   hint: %s\n' "$*" >&2; }

# die MESSAGE [HINT]: the task failed.
die() {
  printf 'error: %s\n' "$1" >&2
  [ -z "${2:-}" ] || hint "$2"
  exit 1
}

# usage_error MESSAGE: the command line makes no sense. Not the same exit code as a failed task.
usage_error() {
  printf 'error: %s\n' "$1" >&2
  hint "\`$0 --help\` lists what there is"
  exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }

# need COMMAND HINT
need() { have "$1" || die "\`$1\` is not there" "$2"; }

# The comment at the head of a script is its help: one text, not two that drift apart.
head_as_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$1"; }

# as_root COMMAND...
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else
    need sudo "run it as root, or have root run: $*"
    sudo "$@"
  fi
}

# install_apt PACKAGE...: only those that are missing, so that a second run asks for nothing.
install_apt() {
  local package missing='' quiet='-qq -o Dpkg::Use-Pty=0'
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  step "apt-get install$missing"
  # The lists of a fresh machine are empty, those of an old one name packages that are gone.
  # shellcheck disable=SC2086  # lists of words
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $quiet $missing >/dev/null 2>&1 ||
    { as_root apt-get update $quiet &&
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $quiet $missing >/dev/null; } ||
    die "could not install$missing" 'apt-get says why above; does `apt-get update` work on this host?'
}

# install_brew FORMULA: Homebrew runs as the user, never as root.
install_brew() {
  step "brew install $1"
  HOMEBREW_NO_AUTO_UPDATE=1 brew install "$1"
}

# within SECONDS COMMAND...: macOS has no timeout(1). The command gets a process group of its own, so that its
# children end with it; its exit code is passed on, 124 means that it was too slow. Do not call it in `$( )`:
# an interrupted subshell would leave the group behind. Let it write to a file instead. And give it a stdin that
# is no terminal: a background group that reads from one is stopped.
WITHIN_GROUP=''
WITHIN_WATCH=''
within() {
  local limit=$1 began=$SECONDS rc=0
  shift
  set -m
  "$@" <&0 &
  WITHIN_GROUP=$!
  ( sleep "$limit"; kill -TERM -- "-$WITHIN_GROUP"; sleep 2; kill -KILL -- "-$WITHIN_GROUP" ) >/dev/null 2>&1 &
  WITHIN_WATCH=$!
  set +m
  wait "$WITHIN_GROUP" || rc=$?
  WITHIN_GROUP=''
  stop_within
  [ "$rc" -eq 0 ] || [ $((SECONDS - began)) -lt "$limit" ] || rc=124
  return "$rc"
}

# For a trap: end what `within` is running, and the watch over it.
stop_within() {
  local group
  for group in $WITHIN_GROUP $WITHIN_WATCH; do
    kill -KILL -- "-$group" 2>/dev/null || true
    wait "$group" 2>/dev/null || true
  done
  WITHIN_GROUP='' WITHIN_WATCH=''
}

# make_home FOLDER: what an installation keeps, closed to others.
# shellcheck disable=SC2174  # each of them is named, so -m holds for each
make_home() { mkdir -p -m 700 "$1" "$1/keys" "$1/tart"; }

# make_key FILE: the key pair of this installation, made once.
make_key() {
  [ ! -f "$1" ] || return 0
  ssh-keygen -q -t ed25519 -N '' -C preheat -f "$1"
}
