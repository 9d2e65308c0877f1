"""Runs commands, each in a fork of this process, which has imported what takes seconds.

Reads jobs, a line of JSON each, and answers with the child's number, then with its exit code.
"""

import json
import os
import resource
import runpy
import sys
import traceback

import intswin.compile.pipeline  # noqa: F401


def main():
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(*json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def run(command, cwd, environment, limit, outputs):
    """Run a command; returns its exit code."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, *outputs)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    if limit:
        resource.setrlimit(getattr(resource, limit[0]), (limit[1], limit[1]))
    sys.argv = command
    code = 0
    try:
        if command[0] == "intswin":
            runpy.run_module("intswin.compile.cli", run_name="__main__")
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
