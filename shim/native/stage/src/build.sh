#!/bin/sh
# Compiles the stage for each architecture: build.sh [DIRECTORY]. The results are committed, so that building criserver
# needs only Go; TestStageIsBuiltFromSource compiles again and compares.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/..}
flags="-Os -static -nostdlib -ffreestanding -fno-pic -fno-pie -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables -fno-ident -fcf-protection=none
	-Wall -Wextra -Werror -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack -Wl,-z,norelro"
build() {
	arch=$1 cc=$2 extra=$3
	# shellcheck disable=SC2086
	(cd "$here" && $cc $(echo $flags $extra) -o "$out/stage_$arch" stage.c)
	"${cc%gcc}strip" -R .comment -R .note.gnu.property "$out/stage_$arch"
}
build amd64 x86_64-linux-gnu-gcc ""
if command -v aarch64-linux-gnu-gcc >/dev/null; then
	flags=$(echo "$flags" | sed 's/-fcf-protection=none//')
	build arm64 aarch64-linux-gnu-gcc "-mgeneral-regs-only -mno-outline-atomics"
fi
