# Sourced by the scripts beside it: saying what happens, and getting what a build needs.

# To standard error: what a script prints for others to read stays clean.
say() { printf '\n==> %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# install_packages PACKAGE...: with apt-get, if this user may.
install_packages() {
  command -v apt-get >/dev/null || die "missing: $*. Install them with this system's package manager and start again."
  local as_root=()
  if [[ $(id -u) != 0 ]]; then
    command -v sudo >/dev/null || die "missing: $*. As root: apt-get install $*"
    as_root=(sudo)
  fi
  say "installing $* with apt-get"
  # Bash before 4.4 takes an empty array for an unset one.
  ${as_root[@]+"${as_root[@]}"} apt-get update -qq >&2
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# need COMMAND=PACKAGE...: installs the packages whose commands are missing.
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [[ ${#missing[@]} == 0 ]] || install_packages "${missing[@]}"
}

need_cargo() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust 1.91 or later, for example with rustup (https://rustup.rs)"
}
