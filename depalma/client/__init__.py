"""What programs use: `Client`, `AsyncClient`, `Executor`. Import them from `depalma`."""
