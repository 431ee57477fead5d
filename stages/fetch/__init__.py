"""URLs -> bytes, as a polite guest.

In: URLs. Out: bodies kept below the root, or the reason why there is none.

    urls.py         urls to bytes, as a polite guest
    config.py       what may be fetched, and how patiently
    response.py     what came back for a url, or why not
    connections.py  connections to public addresses only, with a deadline
    robots.py       what a site asks of crawlers
    host_queue.py   who may ask a host, and when
"""
