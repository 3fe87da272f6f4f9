# Finds the processes of the step: those in the group of $leader, and the others, which are in its session or carry its
# name. $mine are not counted, nor the children of $watcher.
left() {
  group= others=
  if [ -r /proc/self/stat ]; then
    for f in /proc/[0-9]*/stat; do
      read -r s <"$f" || continue
      p=${s%% *}
      set -- ${s##*") "}
      case " $mine " in *" $p "*) continue ;; esac
      case $1:$2 in Z:*|X:*|*:$watcher) continue ;; esac
      if [ "$3" = "$leader" ]; then group="$group $p"
      elif [ "$4" = "$leader" ]; then others="$others $p"; fi
    done
    for f in $(exec grep -lsF "ID=$id" /proc/[0-9]*/environ); do
      p=${f#/proc/} p=${p%/environ}
      case " $mine $group $others " in *" $p "*) ;; *) others="$others $p" ;; esac
    done
  else
    while read -r p q g t c; do
      case " $mine " in *" $p "*) continue ;; esac
      case $t:$q in *Z*:*|*:$watcher) continue ;; esac
      case $g:$c in
        "$leader":*) group="$group $p" ;;
        *"ID=$id"*) others="$others $p" ;;
      esac
    done <<LIST
$(exec ps -A -E -ww -o pid=,ppid=,pgid=,stat=,command=)
LIST
  fi
}
