# Makes sure that a run which was not begun never begins: its wrapper loses the race for the file that both make.
answer() {
  printf "\036%s %s\036" "$id" "$1"
  printf "\036%s %s\036" "$id" "$1" >&4
  exit 0
}
[ -d "$d" ] || mkdir -p -m 700 "$base" "$d" || answer gone
set -C
if true >"$d/begun"; then
  set +C
  mv "$d" "$d.void.$$" && rm -rf "$d.void.$$"
  [ ! -e "$note" ] || answer gone
  answer never
fi
set +C
leader=none watcher=none
read -r leader t1 t2 watcher <"$d/pids"
