# A session is needed: a signal to the group must hit the step and what is ours, and nobody else.
kill -0 "-$$" || { printf "preheat: this sshd gives a command no session of its own\n" >&4; exit 71; }
printf "\036preheat ready\036" >&4
# Runs that are over and done with hold memory.
shift
for old; do rm -rf "${base:?}/$old"; done
mkdir -p -m 700 "$HOME/.preheat" "$base" "$d" && cd "$d" && mkfifo -m 600 o e life && true >out && true >err || {
  printf "preheat: cannot make %s\n" "$d" >&4
  exit 73
}
# Whoever comes after a lost connection may have made a new folder of this name: until the run is begun, files are
# named from within, so that we speak of ours.
(trap "" $all_signals; exec tee -a out) <o 3<&- 4>&- &
t1=$!
(trap "" $all_signals; exec tee -a err) <e >&4 3<&- 4>&- &
t2=$!
# The watcher hears of the end of the step, whose background processes it then gives two seconds, and of that of the
# leader, which a step may kill.
(
  trap "" $all_signals
  read -r leader t1 t2 watcher || kill -KILL 0
  mine="$leader $t1 $t2 $watcher"
  if read -r _; then
    sleep 2
    if [ ! -e "$d/ended" ]; then
      left
      kill -KILL $group
      sleep 0.2 || sleep 1
      kill -KILL "$t1" "$t2"
    fi
    while read -r _; do :; done
  elif [ -e begun ]; then
    left
    kill -KILL $group
    n=0
    while [ "$n" -lt 10 ] && { kill -0 "$t1" || kill -0 "$t2"; }; do n=$((n + 1)); sleep 0.1 || sleep 1; done
    ending 137
  fi
  kill -KILL 0
) <life >/dev/null 3<&- 4>&- &
watcher=$!
leader=$$
exec 5>life 6>o 7>e
printf "%s %s %s %s\n" "$leader" "$t1" "$t2" "$watcher" >pids
printf "%s %s %s %s\n" "$leader" "$t1" "$t2" "$watcher" >&5
over() { rm -f ./*; kill -KILL 0; }
while :; do
  IFS=" " read -r word rest <&3 || over
  [ "$word" != run ] || break
  printf "\036%s here\036" "$rest" >&4
done
# A text that is cut off by a lost connection is never run.
if [ "$rest" -gt 0 ]; then
  body=$(head -c "$rest" <&3)
  case $body in *"$id") body=${body%"$id"} ;; *) over ;; esac
else
  body=
  while :; do
    IFS= read -r line <&3 || over
    [ "$line" != "$id" ] || break
    body="$body$line
"
  done
fi
# One of those who open this file first makes it: we, or somebody who was told that the run never begins.
set -C
true >begun || kill -KILL 0
set +C
true >"$note"
printf "\036%s go\036" "$id" >&4
printf "\036%s go\036" "$id"
cd "$HOME" || cd /
# Caught, not ignored: caught ones are reset in children. The step runs in the foreground: a background job of a shell
# without job control would ignore SIGINT for ever.
trap : $all_signals
shell=${SHELL:-/bin/sh}
case ${shell##*/} in sh|bash|dash|ash|zsh|ksh|mksh) ;; *) shell=/bin/sh ;; esac
PREHEAT_STEP=$body PREHEAT_STEP_ID=$id "$shell" -l -c "eval \"\$PREHEAT_STEP\"" </dev/null >&6 2>&7 3<&- 4>&- 5>&- 6>&- 7>&-
rc=$?
exec 6>&- 7>&-
printf "end\n" >&5
# A signal that is caught ends a wait early.
wait "$t1" || wait "$t1"
wait "$t2" || wait "$t2"
ending "$rc"
said "$rc"
exec >&- 4>&-
while read -r word <&3; do
  [ "$word" != bye ] || kill -KILL 0
done
# The host hung up without having heard it. What is left of the step goes; we stay, or the guest would take it that the
# user has logged out, and some then empty their memory.
mine="$leader $watcher"
left
kill -KILL $group "$watcher"
exec 3<&- 5>&-
while :; do sleep 3600; done
