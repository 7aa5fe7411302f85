"""Work in a process of its own: one protocol for all of them, and how much memory a process has had.

The process that starts a worker writes requests to it, and reads what it tells, one JSON object a line::

    {"number": 1, "request": "BuildRequest", "value": {...}}
    {"number": 1, "event": {...}, "peak_mib": 210.4}
    {"number": 1, "result": {...}, "peak_mib": 412.0}
    {"number": 1, "error": {"kind": "OptionError", "message": "...", "exit_code": 2, ...}, "peak_mib": 412.0}

A request is answered by any number of events and then by one result or error, all with its number. All of them are
dataclasses on both sides; the file of a worker holds its requests, what it answers, and the functions that do the work.
What libraries print goes to stderr and never between the answers. A worker ends with the process that started it: the
end of its input tells.
"""

from dq_deploy.processes.asking import (
    Ending,
    WorkerEndedError,
    WorkerError,
    WorkerProcess,
    WorkerTimeoutError,
    command_of,
)
from dq_deploy.processes.memory import own_peak_mib, peak_mib
from dq_deploy.processes.messages import Failure, Message, MessageT, Tell
from dq_deploy.processes.serving import Handler, serve

__all__ = [
    "Ending",
    "Failure",
    "Handler",
    "Message",
    "MessageT",
    "Tell",
    "WorkerEndedError",
    "WorkerError",
    "WorkerProcess",
    "WorkerTimeoutError",
    "command_of",
    "own_peak_mib",
    "peak_mib",
    "serve",
]
