"""Pictures and prompts -> answers, by a model in the worker or by servers.

In: requests. Out: answers with finish reason and token counts, or why there is none.

    engine.py               what an engine is: requests to answers
    openai_engine.py        answers of OpenAI-compatible servers
    transformers_engine.py  answers of a model in the worker
    servers.py              several servers: how many requests each takes, which are up
    replies.py              what a server says: an answer, a fault of the row, of the server, or the end
"""
