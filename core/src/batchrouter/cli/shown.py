"""A quote and a receipt as a person likes to read them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchrouter.cli.console import counted, out, pairs, seconds, table, usd
from batchrouter.money import format_usd

if TYPE_CHECKING:
    from batchrouter.run import QuoteSummary, Receipt

_RIGHT = ("items", "price", "settled", "failed")


def show_quote(quote: "QuoteSummary") -> None:
    """Print a locked price, its lanes, and why they were chosen."""
    out().print(
        f"[bold]Quote[/]  {counted(quote.item_count, 'item')} for at most "
        f"[bold]{usd(quote.total_usd)}[/]" + _inside_budget(quote)
    )
    if quote.lanes:
        lanes = table("lane", "model", "region", "items", "price", right=_RIGHT)
        for lane in quote.lanes:
            lanes.add_row(
                lane.provider,
                lane.model,
                lane.region or "",
                f"{lane.items:,}",
                usd(lane.price_usd),
            )
        out().print(pairs([("lanes", lanes)]))
    said: list[tuple[str, Any]] = []
    if quote.why:
        said.append(("why", quote.why))
    if quote.committed_usd:
        said.append(("before", f"{usd(quote.committed_usd)} are committed by earlier purchases"))
    if quote.expires_at:
        said.append(("locked", f"until {quote.expires_at.astimezone():%H:%M:%S}"))
    out().print(pairs(said))


def _inside_budget(quote: "QuoteSummary") -> str:
    if quote.budget_usd is None:
        return "; the job has no budget"
    whole = f"the budget of {usd(quote.budget_usd)}"
    return (
        f"; inside {whole}" if quote.fits else f"; [bold red]over {whole}: it will not be bought[/]"
    )


def quote_as_json(quote: "QuoteSummary") -> dict[str, Any]:
    """Turn a quote into JSON's types: money as decimal strings, times in RFC 3339."""
    return {
        "total_usd": format_usd(quote.total_usd),
        "committed_usd": format_usd(quote.committed_usd),
        "budget_usd": None if quote.budget_usd is None else format_usd(quote.budget_usd),
        "fits": quote.fits,
        "item_count": quote.item_count,
        "row_count": quote.row_count,
        "lanes": [
            {
                "provider": lane.provider,
                "model": lane.model,
                "region": lane.region,
                "items": lane.items,
                "price_usd": format_usd(lane.price_usd),
            }
            for lane in quote.lanes
        ],
        "why": quote.why,
        "expires_at": quote.expires_at and quote.expires_at.isoformat(),
    }


def show_receipt(receipt: "Receipt") -> None:
    """Print what a run bought, what it cost, what became of each row, and where the table is."""
    landed = "Landed" if receipt.outcome == "landed" else "Landed what came"
    out().print(
        f"[bold green]{landed}[/]  {counted(receipt.row_count, 'row')} in "
        f"[bold]{_near_path(receipt.location)}[/]",
        soft_wrap=True,
    )
    rows: list[tuple[str, Any]] = [
        ("rows", _rows(receipt)),
        ("quoted", f"{usd(receipt.quoted_usd)}  at most, locked before anything was sent"),
        ("settled", _settled(receipt)),
        ("lanes", _lanes(receipt)),
        ("tokens", f"{receipt.input_tokens:,} in, {receipt.output_tokens:,} out"),
    ]
    if len(receipt.rounds) > 1:
        rows.append(("rounds", _rounds(receipt)))
    if receipt.rounds_ended:
        rows.append(("no round", f"more was bought: {receipt.rounds_ended}"))
    if receipt.unchanged:
        held = counted(receipt.unchanged, "row")
        rows.append(("unchanged", f"{held} more: the table had them, and nothing was bought"))
    if receipt.saved_requests:
        saved = counted(receipt.saved_requests, "request")
        rows.append(("saved", f"{saved}: these rows took the answer of an equal one"))
    if receipt.error_codes:
        codes = ", ".join(f"{number:,} {code}" for code, number in receipt.error_codes.items())
        rows.append(("errors", codes))
    if receipt.quarantined:
        unread = counted(receipt.quarantined, "artifact line")
        rows.append(("rejects", f"{unread} could not be read; kept in the run folder"))
    rows += [
        ("batch", ", ".join(receipt.batch_ids) + _more(receipt)),
        ("run", f"{receipt.job} · {receipt.run_key} · {seconds(receipt.duration_s)}"),
    ]
    out().print(pairs(rows))


def _near_path(location: str) -> str:
    # From where the user stands, when it is below: shorter, and still good to paste.
    path, here = Path(location), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else location


def _rows(receipt: "Receipt") -> str:
    parts = [
        f"{number:,} {status.replace('_', ' ')}"
        for status, number in receipt.rows.items()
        if number or status == "succeeded"
    ]
    return f"{receipt.row_count:,} = " + " + ".join(parts)


def _settled(receipt: "Receipt") -> str:
    told = usd(receipt.settled_usd)
    if receipt.settled_usd is None or not receipt.quoted_usd:
        return told
    return f"{told}  {receipt.settled_usd / receipt.quoted_usd:.0%} of the quote"


def _lanes(receipt: "Receipt") -> Any:
    lanes = table("lane", "model", "items", "failed", "settled", right=_RIGHT)
    for lane in receipt.lanes:
        lanes.add_row(
            lane.provider,
            lane.model,
            f"{lane.items:,}",
            f"{lane.failed:,}",
            usd(lane.settled_usd),
        )
    return lanes


def _rounds(receipt: "Receipt") -> Any:
    rounds = table("round", "items", "quoted", "settled", right=("items", "quoted", "settled"))
    for each in receipt.rounds:
        name = f"retry {each.round}" if each.round else "first"
        rounds.add_row(name, f"{each.items:,}", usd(each.quoted_usd), usd(each.settled_usd))
    return rounds


def _more(receipt: "Receipt") -> str:
    more = receipt.batch_count - len(receipt.batch_ids)
    return f" and {more:,} more" if more else ""
