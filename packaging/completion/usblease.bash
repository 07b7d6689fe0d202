# bash completion of usblease. The program itself knows what may follow, and asks the daemon for names.

_usblease() {
  COMPREPLY=()
  case "${COMP_WORDS[COMP_CWORD - 1]}" in
    -c | --connect)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
      return
      ;;
  esac
  local candidate
  # A guest may be called anything: quote what comes back, and evaluate nothing.
  while IFS= read -r candidate; do
    COMPREPLY+=("$(printf '%q' "$candidate")")
  done < <("${COMP_WORDS[0]}" --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}

complete -F _usblease usblease
