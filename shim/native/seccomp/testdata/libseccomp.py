# Compiles profiles with libseccomp for the differential test. One JSON request a line on stdin, one answer a line:
#   {"names": [...], "arches": [...]}                     -> {"x86": {"read": 3, ...}, ...}, negative or missing: none
#   {"default": N, "arches": [...], "rules": [[action, name, [[arg, op, a, b], ...]], ...]}
#                                                         -> {"bpf": base64} or {"error": text}
import base64
import json
import sys
import tempfile

import seccomp as s

OPS = {"EQ": s.EQ, "NE": s.NE, "LT": s.LT, "LE": s.LE, "GT": s.GT, "GE": s.GE, "MASKED_EQ": s.MASKED_EQ}


def number(arch, name):
    try:
        return s.resolve_syscall(s.Arch(arch), name)
    except ValueError:
        return -1


def signed(action):
    return action - (1 << 32) if action >> 31 else action


def compile(request):
    f = s.SyscallFilter(signed(request["default"]))
    for arch in request["arches"]:
        if not f.exist_arch(s.Arch(arch)):
            f.add_arch(s.Arch(arch))
    if request.get("optimize"):
        f.set_attr(s.Attr.CTL_OPTIMIZE, 2)
    for action, name, args in request["rules"]:
        f.add_rule(signed(action), name, *[s.Arg(i, OPS[op], a, b) for i, op, a, b in args])
    with tempfile.TemporaryFile() as out:
        f.export_bpf(out)
        out.seek(0)
        return out.read()


for line in sys.stdin:
    request = json.loads(line)
    if "names" in request:
        answer = {arch: {n: number(arch, n) for n in request["names"]} for arch in request["arches"]}
    else:
        try:
            answer = {"bpf": base64.b64encode(compile(request)).decode()}
        except Exception as e:
            answer = {"error": repr(e)}
    print(json.dumps(answer), flush=True)
