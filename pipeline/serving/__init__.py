"""A captioner's own servers: started, watched, restarted and ended by the run that asks them.

In: how many, on how many GPUs, and the command of a program that serves as `vllm serve` does. Out: their addresses.

    keeper.py   one program, which ends with whoever keeps it
    server.py   one server: its start, health, restarts, log and end
    fleet.py    all servers of a captioner, held by this process
    on_ray.py   the same, each in an actor on Ray
    asked.py    what servers say of themselves, where no answer comes
"""
