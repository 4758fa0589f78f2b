#!/usr/bin/env python3
"""python3-hl7 as the other side.

    hl7_peer.py parse                  messages on stdin, a blank line between: one JSON line each
    hl7_peer.py serve [CERT KEY TRUST] a platform on mutual TLS, or on none; prints its port, then one JSON line a message
"""
import asyncio
import json
import ssl
import sys

import hl7
import hl7.mllp


def digest(message):
    def at(segment, n, component=1):
        try:
            field = segment(n)
        except IndexError:
            return ""
        raw = str(field).split("~")[0].split("^")
        return message.unescape(raw[component - 1]) if len(raw) >= component else ""

    rows = []
    for s in message:
        if str(s(0)) == "OBX":
            rows.append([at(s, 1), at(s, 2), at(s, 3), at(s, 3, 2), at(s, 4), at(s, 5), at(s, 6), at(s, 11)])
    msh = message.segment("MSH")
    return {"control": str(msh(10)), "type": str(msh(9)), "segments": len(message), "obx": rows}

def show(message):
    print(json.dumps(digest(message), ensure_ascii=False), flush=True)

def mutual(cert, key, trust):
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_2
    ctx.load_cert_chain(cert, key)
    ctx.load_verify_locations(trust)
    ctx.verify_mode = ssl.CERT_REQUIRED
    return ctx

async def serve(*files):
    ctx = mutual(*files) if files else None

    async def client(reader, writer):
        try:
            while True:
                message = await reader.readmessage()
                show(message)
                writer.writemessage(message.create_ack("CA"))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            writer.close()

    server = await hl7.mllp.start_hl7_server(client, "127.0.0.1", 0, ssl=ctx, encoding="utf-8", limit=1 << 22)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()

if __name__ == "__main__":
    if sys.argv[1:2] == ["parse"]:
        for part in sys.stdin.buffer.read().decode("utf-8").split("\n\n"):
            if part.strip():
                show(hl7.parse(part.strip("\n").replace("\n", "\r")))
    else:
        asyncio.run(serve(*sys.argv[2:5]))
