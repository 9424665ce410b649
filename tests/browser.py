# SPDX-License-Identifier: Apache-2.0
"""A page in a real browser, for tests: Chromium without a window, which must stay silent and at home."""

import contextlib
import importlib.util
import pathlib
import shutil
from collections.abc import Iterator
from urllib import parse

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
HOSTS = ('127.0.0.1', 'localhost', '::1')
ARGUMENTS = ['--headless', '--no-sandbox', '--disable-gpu']


def is_local(url: str) -> bool:
    """Returns whether a request stays on this machine: file:, data:, blob:, about: or loopback."""
    parts = parse.urlsplit(url)
    return parts.scheme in ('file', 'data', 'blob', 'about') or parts.hostname in HOSTS


@contextlib.contextmanager
def open_page(target: str | pathlib.Path, *, allowed_errors: tuple[str, ...] = (), **options) -> Iterator:
    """Yields a playwright `Page` that shows `target`; at the end fails on what the page did wrong.

    A page does wrong if its console shows an error, if a script of it raises, or if it asks for anything
    that is not on this machine; such a request is refused, so nothing leaves.

    Args:
      target: a file, or a URL.
      allowed_errors: parts of console errors that the test makes on purpose.
      options: of playwright's `Browser.new_context`, e.g. viewport={'width': 390, 'height': 844},
        color_scheme='dark', has_touch=True, java_script_enabled=False.

    Raises:
      pytest.skip: playwright or a Chromium is not installed.
    """
    if importlib.util.find_spec('playwright') is None:
        pytest.skip('needs playwright: pip install -r requirements.txt')
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip(f'needs a browser: none of {", ".join(NAMES)} is on the PATH (apt install chromium)')
    from playwright import sync_api

    url = target if parse.urlsplit(str(target)).netloc else pathlib.Path(target).resolve().as_uri()
    errors, outside = [], []

    def judge(route):
        if is_local(route.request.url):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def judge_socket(route):
        outside.append(route.url)  # never connected: its page sees a socket that stays silent

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            context = browser.new_context(**options)
            context.route('**/*', judge)
            context.route_web_socket(lambda address: not is_local(address), judge_socket)
            page = context.new_page()
            page.on('console', lambda message: message.type == 'error' and errors.append(message.text))
            page.on('pageerror', lambda error: errors.append(str(error)))
            page.goto(url)
            yield page
        finally:
            browser.close()
    # A refused request is also an error of the console: it is named once, as what it is.
    errors = [text for text in errors if not any(part in text for part in allowed_errors)
              and not (outside and 'net::ERR_FAILED' in text)]
    assert not outside, f'the page asked for what is not on this machine: {outside}'
    assert not errors, f'the console of {url} shows errors: {errors}'
