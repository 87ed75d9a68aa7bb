"""The table that the benchmarks read: support tickets in several languages, made from a seed.

A body has 700 to 1,300 bytes: mostly English, one sentence in four with accents, in Cyrillic,
Chinese or Japanese, or with an emoji of several code points; a line break every few sentences;
quotes, backslashes and tabs as people write them.
"""

import random
from pathlib import Path
from typing import Any

GROUP_ROWS = 50_000
_BODIES = 5_000

_ENGLISH: list[str] = str.split(
    "the order has not come yet please help me with invoice refund account password again today"
    " I was charged twice and nobody answers what should I do now since last week my parcel"
    " is lost somewhere between your warehouse and the post office can you check where it went"
)
_FOREIGN = [
    "Ma commande n'est toujours pas arrivée, c'est très gênant.",
    "Die Rechnung ist größer als erwartet, bitte prüfen Sie das.",
    "Мой заказ ещё не пришёл, помогите пожалуйста разобраться.",
    "我的订单还没有到，请帮我查一下物流信息。",  # noqa: RUF001 - people write so
    "注文した商品がまだ届いていません。確認をお願いします。",
    "Thank you so much 👩\u200d💻 you are the best 🎉",
]
_ENDS = [". "] * 12 + [
    ".\n",
    ".\n",
    ".\r\n",
    "! ",
    "? ",
    '." ',
    ".\t",
    ' "quoted" ',
    " C:\\temp\\log. ",
]


def make_table(path: Path, rows: int, *, is_short: bool = False) -> None:
    """Write tickets, 50,000 a row group; a manifest line of one has about 1.6 kB.

    Args:
        path: The Parquet file.
        rows: How many.
        is_short: Give each a body of about 90 bytes.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(7)
    shortest, longest = (60, 120) if is_short else (700, 1300)
    bodies = pa.array([_body(chance, chance.randint(shortest, longest)) for _ in range(_BODIES)])
    subjects = pa.array([
        f"Ticket about {' '.join(chance.choices(_ENGLISH, k=4))}" for _ in range(997)
    ])
    schema = pa.schema([("id", pa.string()), ("subject", pa.string()), ("body", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP_ROWS):
            numbers = np.arange(start, min(start + GROUP_ROWS, rows))
            told = pa.array(numbers).cast(pa.string())
            columns: list[Any] = [
                _joined(["T-", _padded(told)]),
                subjects.take(pa.array(numbers % 997)),
                _joined([told, " ", bodies.take(pa.array(numbers * 31 % _BODIES))]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _body(chance: random.Random, size_bytes: int) -> str:
    text = ""
    while len(text.encode()) < size_bytes:
        is_foreign = chance.random() < 0.25
        words = chance.choices(_ENGLISH, k=chance.randint(5, 14))
        text += chance.choice(_FOREIGN) if is_foreign else " ".join(words).capitalize()
        text += chance.choice(_ENDS)
    return text


def _padded(told: Any) -> Any:
    import pyarrow.compute as pc

    return pc.utf8_lpad(told, 12, "0")


def _joined(parts: list[Any]) -> Any:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*parts, "")
