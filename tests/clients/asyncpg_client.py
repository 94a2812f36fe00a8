"""asyncpg as an agent would use it. Arguments: the port, and ssl (`disable` or `verify-full`). Prints `ok` at the end."""

import asyncio
import decimal
import os
import ssl
import sys

import asyncpg

port = int(sys.argv[1])


def equal(got, wanted, what):
    assert got == wanted, f"{what}: {got!r} instead of {wanted!r}"


def masked(email):
    assert email and "customer" not in email.split("@")[0], f"not masked: {email!r}"


async def refused(call, rule):
    try:
        await call
    except asyncpg.InsufficientPrivilegeError as error:
        assert error.sqlstate == "42501" and f'rule "{rule}"' in str(error), str(error)
        return
    raise AssertionError("what is not allowed passed")


async def main():
    context = False
    if sys.argv[2] == "verify-full":
        context = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
        other = ssl.create_default_context(cafile=os.path.join(os.path.dirname(__file__), "other-ca.pem"))
        try:
            await asyncpg.connect(
                host="127.0.0.1", port=port, user="agent", password="none", database="shop", ssl=other
            )
            raise AssertionError("any certificate passes")
        except ssl.SSLCertVerificationError:
            pass
    db = await asyncpg.connect(
        host="127.0.0.1", port=port, user="agent", password="none", database="shop", ssl=context
    )
    encrypted = db._transport.get_extra_info("ssl_object") is not None
    equal(encrypted, sys.argv[2] == "verify-full", "TLS")
    equal(await db.fetchval("SELECT count(*) FROM orders"), 5000, "count")
    rows = await db.fetch("SELECT id, email FROM customers WHERE id <= $1 ORDER BY id", 300)
    equal([row["id"] for row in rows], list(range(1, 301)), "rows")
    for row in rows:
        masked(row["email"])
    equal(await db.fetchval("SELECT price FROM products WHERE id = $1", 3), decimal.Decimal("4.50"), "numeric, binary")
    row = await db.fetchrow("SELECT * FROM customers WHERE id = $1", 7)
    masked(row["email"])
    assert "4111111111111111" not in row["card"] and "007" not in row["ssn"]
    equal(row["name"], "Customer 7", "what has no mask")
    assert "customer7@" not in row["notes"], row["notes"]

    statement = await db.prepare("SELECT id, status FROM orders WHERE id = $1")
    for i in range(1, 20):
        equal((await statement.fetchrow(i))["id"], i, "prepared")
    # Types that it must ask the catalogue about.
    equal(await db.fetchval("SELECT $1::int[]", [1, 2, 3]), [1, 2, 3], "array")
    equal((await db.fetchval("SELECT ROW(1, 'x'::text)"))[0], 1, "record")
    # Types of the database's own: an enumeration, a composite type, a domain, arrays of them.
    moods = [(1, "calm", (1, 2), 5, ["calm", "cross"]), (2, "cross", None, None, [])]
    await db.executemany("INSERT INTO moods VALUES ($1, $2, $3, $4, $5)", moods)
    got = await db.fetch("SELECT * FROM moods ORDER BY id")
    equal([tuple(row) for row in got], moods, "types of the database's own")
    equal(await db.fetchval("SELECT $1::mood[]", ["cross"]), ["cross"], "array of an enumeration")
    await db.copy_records_to_table("moods", records=[(3, "calm", (3, 4), 6, ["calm"])])
    equal(await db.fetchval("SELECT spot FROM moods WHERE id = 3"), (3, 4), "composite, copied in")
    await db.execute("DELETE FROM moods")

    async with db.transaction():
        rows = 0
        async for record in db.cursor("SELECT id, email FROM customers ORDER BY id", prefetch=50):
            rows += 1
            masked(record["email"])
        equal(rows, 1000, "rows of the cursor")

    # A refused command is refused where it is prepared, and the session goes on.
    await refused(db.execute("DROP TABLE orders"), "no drops")
    await refused(db.fetch("SELECT * FROM payroll WHERE id = $1", 1), "default")
    await refused(db.prepare("DELETE FROM customers WHERE id = $1"), "default")
    await refused(db.copy_from_table("payroll", output=lambda data: None), "default")
    await refused(db.executemany("DELETE FROM customers WHERE id = $1", [(1,), (2,)]), "default")
    equal(await db.fetchval("SELECT count(*) FROM customers"), 1000, "the session goes on")

    try:
        async with db.transaction():
            await db.execute("UPDATE orders SET status = 'lost' WHERE id = 1")
            await db.execute("DROP TABLE orders")
        raise AssertionError("DROP TABLE passed")
    except asyncpg.InsufficientPrivilegeError as error:
        assert "no drops" in str(error), str(error)
    equal(await db.fetchval("SELECT status FROM orders WHERE id = 1"), "open", "rolled back")

    rows = [(i, 1, 1, 1, "many") for i in range(6000, 6500)]
    await db.executemany("INSERT INTO orders VALUES ($1, $2, $3, $4, $5)", rows)
    equal(await db.fetchval("SELECT count(*) FROM orders WHERE status = 'many'"), 500, "executemany")
    await db.copy_records_to_table("orders", records=[(i, 1, 1, 1, "copied") for i in range(7000, 8000)])
    equal(await db.fetchval("SELECT count(*) FROM orders WHERE status = 'copied'"), 1000, "copied in")
    out = bytearray()

    async def write(data):
        out.extend(data)

    await db.copy_from_query("SELECT id, email FROM customers WHERE id <= $1", 10, output=write)
    lines = out.decode().splitlines()
    equal(len(lines), 10, "copied out")
    for line in lines:
        masked(line.split("\t")[1])

    # Several at once over a pool.
    async with asyncpg.create_pool(
        host="127.0.0.1", port=port, user="agent", password="none", database="shop", ssl=context, min_size=4, max_size=4
    ) as pool:
        answers = await asyncio.gather(*(pool.fetchval("SELECT $1::int + 1", i) for i in range(100)))
        equal(answers, [i + 1 for i in range(100)], "pool")
    await db.close()
    print("ok")


asyncio.run(main())
