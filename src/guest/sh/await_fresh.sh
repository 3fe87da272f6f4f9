# Leaves a process behind that waits, as root, for what is this guest's own; in the guest's memory it is saved waiting.
umask 077
dir=$HOME/.preheat/fresh
rm -rf "$dir"
mkdir -p "$dir" && cd "$dir" && mkfifo in out || { printf "cannot make %s\n" "$dir"; exit 73; }
command -v sudo >/dev/null || [ "$(id -u)" = 0 ] || { printf "there is no sudo\n"; exit 69; }
as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
$as_root /bin/sh -c "$1" preheat "$dir" </dev/null >sudo.log 2>&1 &
waiter=$!
# Whether it is there is its word to say; should it end instead, its pipe would wait for ever.
(wait_for=0; while kill -0 "$waiter" 2>/dev/null && [ ! -e awaiting ] && [ "$wait_for" -lt 300 ]; do
  wait_for=$((wait_for + 1)); sleep 0.1 || sleep 1
done)
if [ -e awaiting ]; then
  printf "awaiting\n"
else
  kill "$waiter" 2>/dev/null
  head -n 3 sudo.log
  exit 77
fi
