# Leaves a process behind that waits, as root, for what is this guest's own; in the guest's memory it is saved waiting.
umask 077
dir=$HOME/.preheat/fresh
rm -rf "$dir"
if ! { mkdir -p "$dir" && cd "$dir" && mkfifo in out; }; then
  printf "cannot make %s\n" "$dir"
  exit 73
fi
as_root="sudo -n"
[ "$(id -u)" != 0 ] || as_root=
# Whether it has ended is written down by its own shell: to ask for it by a signal is refused now and then while sudo is root.
(
  $as_root /bin/sh -c "$1" preheat "$dir"
  true >ended
) </dev/null >waiter.log 2>&1 &
looks=0
while [ ! -e awaiting ] && [ ! -e ended ] && [ "$looks" -lt 300 ]; do
  looks=$((looks + 1))
  sleep 0.1 || sleep 1
done
if [ -e awaiting ]; then
  printf "awaiting\n"
else
  head -n 3 waiter.log
  exit 77
fi
