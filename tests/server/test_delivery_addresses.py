"""Where a webhook may go, by its text and by what its name resolves to."""

import pytest

from batchrouter.server.delivery.addresses import check_webhook_url, destination_of


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook",
        "https://example.com:8443/hook?run=1",
        "https://1.1.1.1/",
        "https://[2606:4700::1111]/hook",
        # What stands for a public IPv4 address is as good as the address.
        "https://[::ffff:1.1.1.1]/hook",
        "https://[::1.1.1.1]/hook",
        "https://[64:ff9b::101:101]/hook",
        "https://[2002:101:101::]/hook",
    ],
)
def test_public_https_urls_are_admitted(url: str) -> None:
    check_webhook_url(url, allow_loopback_http=False)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/hook", "https is required"),
        ("ftp://example.com/hook", "not an https"),
        ("https:///hook", "not an https"),
        ("https://user:pass@example.com/", "user info"),
        ("https://example.com@10.0.0.1/", "user info"),
        ("https://example.com:22/", "port 22"),
        ("https://example.com:99999/", "not a URL"),
        ("https://exa mple.com/", "characters"),
        ("https://example.com\\@evil.example/", "characters"),
        ("https://exämple.com/", "characters"),
        ("https://example.com/\n", "characters"),
        ("https://[::1", "not a URL"),
        ("https://10.0.0.7/", "not a public"),
        ("https://127.0.0.1/", "not a public"),
        ("https://169.254.169.254/latest/meta-data", "not a public"),
        ("https://100.64.0.1/", "not a public"),
        ("https://0.0.0.0/", "not a public"),
        ("https://224.0.0.1/", "not a public"),
        ("https://240.0.0.1/", "not a public"),
        ("https://255.255.255.255/", "not a public"),
        ("https://[::1]/", "not a public"),
        ("https://[fe80::1%25eth0]/", "not a"),
        ("https://[::ffff:10.0.0.1]/", "not a public"),
        ("https://[::10.0.0.1]/", "not a public"),
        ("https://[2002:a00:1::]/", "not a public"),
        ("https://[64:ff9b::a00:1]/", "not a public"),
        ("https://[64:ff9b:1::1]/", "not a public"),
        ("https://[ff02::1]/", "not a public"),
        ("https://[4000::1]/", "not a public"),
        ("https://" + "a" * 3000, "longer than"),
    ],
)
def test_everything_else_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_webhook_url(url, allow_loopback_http=True)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000/hook", "http://localhost:9000/", "http://[::1]:9000/"]
)
def test_loopback_http_is_admitted_only_beside_a_loopback_router(url: str) -> None:
    check_webhook_url(url, allow_loopback_http=True)

    with pytest.raises(ValueError, match="only while the router is on loopback"):
        check_webhook_url(url, allow_loopback_http=False)


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    found = destination_of(
        "https://hooks.example.com:8443/a?b=c",
        allow_loopback_http=False,
        resolve=lambda _host, _port: ["1.1.1.1", "2606:4700::1111"],
    )

    assert found.connect_url == "https://1.1.1.1:8443/a?b=c"
    assert found.host_header == "hooks.example.com:8443"
    assert found.host == "hooks.example.com"


@pytest.mark.parametrize(
    "answer", [["10.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:192.168.0.1"], ["64:ff9b::7f00:1"]]
)
def test_one_private_address_refuses_the_name(answer: list[str]) -> None:
    with pytest.raises(ValueError, match="not a public"):
        destination_of(
            "https://rebind.example/", allow_loopback_http=True, resolve=lambda _h, _p: answer
        )


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "0x7f000001", "2130706433", "017700000001", "0", "10.1"]
)
def test_another_spelling_of_an_inner_address_is_refused_when_it_is_resolved(host: str) -> None:
    # The system reads these without asking any name server.
    with pytest.raises(ValueError, match="not a public"):
        destination_of(f"https://{host}/hook", allow_loopback_http=True)


def test_localhost_that_is_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="not on loopback"):
        destination_of(
            "http://localhost:80/", allow_loopback_http=True, resolve=lambda _h, _p: ["8.8.8.8"]
        )


def test_a_name_without_addresses_is_an_error_to_try_again() -> None:
    with pytest.raises(OSError, match="has no address"):
        destination_of(
            "https://gone.example/", allow_loopback_http=False, resolve=lambda _h, _p: []
        )
