"""A page with nothing but small charts, as many as its URL says: the time of Streamlit and plotly by themselves."""

import plotly.graph_objects as go
import streamlit as st

st.header("Bare")
for number in range(int(st.query_params.get("charts", 0))):
    st.plotly_chart(go.Figure(go.Heatmap(z=[[1, 2], [3, 4]])), key=str(number))
