"""unit/ starts no driver, property/ walks models, native/ runs real processes on the simulated card."""
