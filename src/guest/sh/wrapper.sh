# A session is needed: a signal to the group must hit the step and what is ours, and nobody else.
kill -0 "-$$" || { printf "preheat: this sshd gives a command no session of its own\n" >&4; exit 71; }
printf "\036preheat ready\036" >&4
# Runs that are over and done with hold memory.
shift
for old; do rm -rf "${base:?}/$old"; done
# A text must not get into an argument list.
[ "$(command -v printf)" = printf ] || { printf "preheat: the printf of /bin/sh is a program\n" >&4; exit 71; }
mkdir -p -m 700 "$HOME/.preheat" "$base" "$d" && cd "$d" && mkfifo -m 600 o e life text && true >out && true >err || {
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
# The reader speaks with the host until there is something to run. It has its own process because the step, and so the
# shell that waits for it, is in the foreground: a background job of a shell without job control would ignore SIGINT for
# ever.
over() { rm -f ./*; kill -KILL 0; }
(
  trap "" $all_signals
  in=
  while :; do
    IFS=" " read -r word rest <&3 || over
    case $word in
      run) break ;;
      login) [ -n "$in" ] || printf "login\n" >&9; in=1 ;;
      *) printf "\036%s here\036" "$rest" >&4 ;;
    esac
  done
  # A text that is cut off by a lost connection is never run.
  if [ "$rest" -gt 0 ]; then
    body=$(head -c "$rest" <&3)
    case $body in *"$id") ;; *) over ;; esac
  else
    body=
    while :; do
      IFS= read -r line <&3 || over
      body="$body$line
"
      [ "$line" != "$id" ] || break
    done
  fi
  # One of those who open this file first makes it: we, or somebody who was told that the run never begins.
  set -C
  true >begun || kill -KILL 0
  set +C
  true >"$note"
  printf "\036%s go\036" "$id" >&4
  printf "\036%s go\036" "$id"
  printf "run %s %s\n%s" "$rest" "$id" "$body" >&9
) 9>text &
leader=$$
exec 5>life 6>o 7>e 8<text
printf "%s %s %s %s\n" "$leader" "$t1" "$t2" "$watcher" >pids
printf "%s %s %s %s\n" "$leader" "$t1" "$t2" "$watcher" >&5
shell=${SHELL:-/bin/sh}
case ${shell##*/} in sh|bash|dash|ash|zsh|ksh|mksh) ;; *) shell=/bin/sh ;; esac
# What the login shell does behind its profile, whose words go nowhere: it takes its text, whole, and becomes the step.
step="
[ \"\$PREHEAT_STEP_BYTES\" ] || IFS=\" \" read -r PREHEAT_STEP PREHEAT_STEP_BYTES PREHEAT_STEP_LINE <&8 || exit 71
PREHEAT_STEP=
if [ \"\$PREHEAT_STEP_BYTES\" -gt 0 ]; then
  PREHEAT_STEP=\$(head -c \"\$PREHEAT_STEP_BYTES\" <&8)
  case \$PREHEAT_STEP in *\"\$PREHEAT_STEP_ID\") PREHEAT_STEP=\${PREHEAT_STEP%\"\$PREHEAT_STEP_ID\"} ;; *) exit 71 ;; esac
else
  while IFS= read -r PREHEAT_STEP_LINE <&8 || exit 71; [ \"\$PREHEAT_STEP_LINE\" != \"\$PREHEAT_STEP_ID\" ]; do
    PREHEAT_STEP=\"\$PREHEAT_STEP\$PREHEAT_STEP_LINE
\"
  done
fi
exec 8<&- >\"\$PREHEAT_STEP_DIR/o\" 2>\"\$PREHEAT_STEP_DIR/e\"
unset PREHEAT_STEP_BYTES PREHEAT_STEP_LINE PREHEAT_STEP_DIR
eval \"\$PREHEAT_STEP\""
login() (
  cd "$HOME" || cd /
  PREHEAT_STEP_BYTES=$1 PREHEAT_STEP_DIR=$d PREHEAT_STEP_ID=$id \
    exec "$shell" -l -c "$step" </dev/null >/dev/null 2>&1 3<&- 4>&- 5>&- 6>&- 7>&-
)
# Caught, not ignored: caught ones are reset in children.
trap : $all_signals
# Told to log in, the shell is up and past its profile when its text comes; else, and where it did not wait, it is started
# with its text.
while IFS=" " read -r word bytes check <&8; do
  case $word:$check in
    login:) login ""; rc=$? ;;
    run:"$id") login "$bytes"; rc=$?; break ;;
    *) break ;;
  esac
done
[ -e begun ] || kill -KILL 0
exec 8<&-
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
