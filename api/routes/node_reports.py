"""What nodes report. Served on the internal socket alone; the socket lets in who may."""

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.routes.answers import json_answer
from api.routes.calls import platform_of
from api.services import reports
from sandboxd.contract.messages import NodeReport
from sandboxd.contract.validation import invalid

router = APIRouter()


@router.post("/internal/v1/node-reports", response_class=Response, response_model=None)
async def receive_report(request: Request) -> Response:
    """Take in a node's report; answer what it may forget and what it must bury."""
    try:
        report = NodeReport.model_validate_json(await request.body())
    except ValidationError as error:
        raise invalid(error) from None
    return json_answer(await reports.receive(platform_of(request), report))
