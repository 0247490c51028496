module sandlot.dev/standin

go 1.26
