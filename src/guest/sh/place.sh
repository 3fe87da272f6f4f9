# 3 is the host, 4 the stderr that it reads; our own noise ("Terminated") goes nowhere.
exec 3<&0 4>&2 2>/dev/null </dev/null
# Where the run named $1 keeps its files: in memory where a guest has a place for that, since a step may print secrets and
# the disk of a guest is a file on its host.
id=$1
base=$HOME/.preheat/run
if [ -d /dev/shm ] && [ -w /dev/shm ]; then
  base=/dev/shm/preheat-${LOGNAME:-user}
  [ ! -e "$base" ] || [ -O "$base" ] || base=$HOME/.preheat/run
fi
d=$base/$id
# That it was begun is noted on the disk as well: a guest may empty its memory when nobody is logged in.
note=$HOME/.preheat/begun-$id
all_signals="TERM HUP INT QUIT USR1 USR2 ALRM PIPE"
# Writes the end down, behind the output.
ending() {
  true >"$d/ended.$1"
  true >"$d/ended"
  { printf "\036%s exit %s\036" "$id" "$1" >>"$d/out" && printf "\036%s exit %s\036" "$id" "$1" >>"$d/err"; } || true >"$d/full"
}
said() {
  printf "\036%s exit %s\036" "$id" "$1"
  printf "\036%s exit %s\036" "$id" "$1" >&4
}
