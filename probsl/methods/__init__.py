"""The methods: values that turn a problem into a posterior."""
