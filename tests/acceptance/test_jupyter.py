"""JupyterLab in a sandbox, used in a real browser by all forms of address: a cell is typed, run, and answers."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from browser import Page, browsing

import jupyter_lab
from harness import Platform
from sandlot import Client, Sandbox

_EXAMPLE = Path(jupyter_lab.__file__)
_NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": ""}
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
)
_LINE = "import platform; print('kernel', 6 * 7, platform.node())"


@pytest.fixture(scope="module", name="client")
def _client(platform: Platform) -> Generator[Client]:
    with Client(api_key=platform.key, url=platform.url) as client:
        yield client


@pytest.fixture(name="sandbox")
def _sandbox(client: Client, jupyter_wheels: Path) -> Generator[Sandbox]:
    image = jupyter_lab.image_with_jupyter(jupyter_wheels)
    with Sandbox.create(image, resources=jupyter_lab.RESOURCES, egress="blocked", client=client) as sandbox:
        sandbox.files.write(f"{jupyter_lab.NOTEBOOKS}/a.ipynb", _NOTEBOOK)
        yield sandbox


@pytest.mark.parametrize("form", ["name", "path"])
async def test_a_cell_is_run_in_a_browser(sandbox: Sandbox, browser_root: Path, form: str) -> None:
    link = jupyter_lab.open_lab(sandbox, form, 600)
    notebook = link.url.replace("/lab?", "/lab/tree/a.ipynb?")
    async with browsing(browser_root) as page:
        await page.visit(notebook.partition("?")[0])
        await page.until("document.body.innerText.includes('unauthenticated')")
        page.events.clear()
        await page.visit(notebook)
        await _run_a_cell(page, sandbox.id)
        assert "sandlot_token" not in await page.value("location.href + document.cookie")


async def test_a_cell_is_run_in_a_browser_by_headers(platform: Platform, sandbox: Sandbox, browser_root: Path) -> None:
    link = jupyter_lab.open_lab(sandbox, "name", 600)
    headers = {
        "Sandlot-Sandbox-Id": sandbox.id,
        "Sandlot-Sandbox-Port": str(jupyter_lab.PORT),
        "Sandlot-Token": link.token,
    }
    async with browsing(browser_root) as page:
        await page.call("Network.setExtraHTTPHeaders", headers=headers)
        await page.visit(f"{platform.gateway_url}/lab/tree/a.ipynb")
        await _run_a_cell(page, sandbox.id)


async def _run_a_cell(page: Page, sandbox_id: str) -> None:
    await page.until("document.querySelector('.jp-Notebook .jp-CodeCell .cm-content')")
    # What is run before the kernel is there asks which one shall be.
    await page.until_socket("/api/kernels/")
    await page.until("document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]')")
    await page.click(".jp-Notebook .jp-CodeCell .cm-content")
    await page.until("document.activeElement.closest('.jp-Notebook .jp-CodeCell')")
    await page.type(_LINE)
    await page.until(f"document.querySelector('.jp-Notebook .cm-content').innerText.includes({json.dumps(_LINE)})")
    await page.shift_enter()
    await page.until("document.querySelector('.jp-OutputArea-output')?.innerText.includes('kernel 42')")
    assert not [line for line in page.complaints() if "/api/" in line], page.complaints()


def test_the_example_as_it_is_printed(platform: Platform, jupyter_wheels: Path) -> None:
    environment = os.environ | {"SANDLOT_URL": platform.url, "SANDLOT_API_KEY": platform.key}
    argv = [sys.executable, str(_EXAMPLE), "--packages", str(jupyter_wheels)]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert select.select([running.stdout], [], [], 240)[0], "nothing is printed"
        assert "/lab?sandlot_token=" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
